keyhatch bridge -- python3 bot.py
keyhatch bridge -- bash bot.sh
