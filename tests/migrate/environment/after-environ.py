from urllib.request import Request, urlopen

from keyhatch import environ

headers = {"Authorization": f"Bearer {environ['API_KEY']}"}
with urlopen(Request(environ["API_URL"], headers=headers)) as reply:
    print(reply.status, reply.read().decode())
