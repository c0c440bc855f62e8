keyhatch run --env API_KEY=my-bot/API_KEY -- node bot.mjs
keyhatch run --env-all my-bot/ -- python3 bot.py
