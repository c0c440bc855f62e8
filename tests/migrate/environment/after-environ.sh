KEYHATCH_ENV_FILE=secrets.map python3 after-environ.py
