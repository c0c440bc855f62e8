import json
import os
from urllib.request import Request, urlopen

from cryptography.fernet import Fernet

with open("secrets.key") as key, open("secrets.enc") as token:
    secrets = json.loads(Fernet(key.read()).decrypt(token.read()))
headers = {"Authorization": f"Bearer {secrets['api_key']}"}
with urlopen(Request(os.environ["API_URL"], headers=headers)) as reply:
    print(reply.status, reply.read().decode())
