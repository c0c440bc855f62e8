keyhatch bridge --aws-agent -- python3 bot.py
