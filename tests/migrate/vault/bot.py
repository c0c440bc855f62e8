import os
from urllib.request import Request, urlopen

import hvac

secret = hvac.Client().secrets.kv.v2.read_secret_version("app/api", raise_on_deleted_version=True)
headers = {"Authorization": f"Bearer {secret['data']['data']['key']}"}
with urlopen(Request(os.environ["API_URL"], headers=headers)) as reply:
    print(reply.status, reply.read().decode())
