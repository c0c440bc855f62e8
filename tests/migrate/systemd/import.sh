keyhatchd store put my-bot/api-key < /srv/my-bot/api-key
rm /srv/my-bot/api-key
