keyhatch doctor my-bot/API_KEY
