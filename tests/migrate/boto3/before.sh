python3 bot.py
bash bot.sh
