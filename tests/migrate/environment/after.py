import os
from urllib.request import Request, urlopen

import keyhatch

headers = {"Authorization": f"Bearer {keyhatch.get('my-bot/API_KEY').reveal()}"}
with urlopen(Request(os.environ["API_URL"], headers=headers)) as reply:
    print(reply.status, reply.read().decode())
