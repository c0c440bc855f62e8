echo any > token
VAULT_ADDR=unix:///run/keyhatch/keyhatch.sock bao agent -config agent.hcl
