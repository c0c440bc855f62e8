import os
from urllib.request import Request, urlopen

headers = {"Authorization": f"Bearer {os.environ['API_KEY']}"}
with urlopen(Request(os.environ["API_URL"], headers=headers)) as reply:
    print(reply.status, reply.read().decode())
