keyhatchd store import --from dotenv --prefix my-bot/ --dry-run .env
keyhatchd store import --from dotenv --prefix my-bot/ .env
keyhatchd store list
rm .env
