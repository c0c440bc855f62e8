import os
from pathlib import Path
from urllib.request import Request, urlopen

key = Path(os.environ["API_KEY_FILE"]).read_text()
headers = {"Authorization": f"Bearer {key}"}
with urlopen(Request(os.environ["API_URL"], headers=headers)) as reply:
    print(reply.status, reply.read().decode())
