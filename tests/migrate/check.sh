keyhatchd check
keyhatchd reload
keyhatchd explain --secret my-bot/API_KEY --peer user=my-bot,unit=my-bot.service
