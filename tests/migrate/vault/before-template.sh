bao agent -config agent.hcl
