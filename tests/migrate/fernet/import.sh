keyhatchd store import --from fernet --fernet-key secrets.key --prefix my-bot/ --dry-run secrets.enc
keyhatchd store import --from fernet --fernet-key secrets.key --prefix my-bot/ secrets.enc
keyhatchd store list
rm secrets.key secrets.enc
