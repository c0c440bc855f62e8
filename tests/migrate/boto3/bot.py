import os
from urllib.request import Request, urlopen

import boto3

secret = boto3.client("secretsmanager").get_secret_value(SecretId="MySecretId")
headers = {"Authorization": f"Bearer {secret['SecretString']}"}
with urlopen(Request(os.environ["API_URL"], headers=headers)) as reply:
    print(reply.status, reply.read().decode())
