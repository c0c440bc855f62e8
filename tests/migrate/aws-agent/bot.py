import json
import os
from urllib.request import Request, urlopen

with open("/var/run/awssmatoken") as file:
    token = {"X-Aws-Parameters-Secrets-Token": file.read().strip()}
with urlopen(Request("http://localhost:2773/secretsmanager/get?secretId=MySecretId", headers=token)) as reply:
    key = json.load(reply)["SecretString"]

with urlopen(Request(os.environ["API_URL"], headers={"Authorization": f"Bearer {key}"})) as reply:
    print(reply.status, reply.read().decode())
