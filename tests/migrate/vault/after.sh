keyhatch bridge -- python3 bot.py
VAULT_ADDR=unix:///run/keyhatch/keyhatch.sock bash bot.sh
