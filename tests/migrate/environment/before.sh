set -a; . ./.env; set +a
node bot.mjs
python3 bot.py
