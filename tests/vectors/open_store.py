"""Opens a Keyhatch store as docs/store-format.md describes it: open_store.py STORE KEY. Needs `cryptography`."""
import base64, hashlib, json, struct, sys
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

data, key = (open(path, "rb").read() for path in sys.argv[1:3])
at = 0
def take(size):
    global at
    at += size
    return data[at - size : at]
def number(size):
    return int.from_bytes(take(size), "big")
def cipher(secret, salt, info):
    return AESGCM(HKDF(hashes.SHA256(), 32, salt, b"keyhatch store 1 " + info).derive(secret))
def unseal(gcm, nonce, sealed, aad):
    return gcm.decrypt(nonce.to_bytes(12, "big"), sealed, aad)

assert take(8) == b"KEYHATCH" and number(2) == 1 and number(8) == len(data)
store, generation, salt = take(16), take(8), take(32)
slots = [(take(number(1)), take(8), take(32), take(48)) for _ in range(number(1))]
fingerprint = hashlib.sha256(b"keyhatch store 1 key fingerprint" + key).digest()[:8]
label, _, slot_salt, wrapped = next(slot for slot in slots if slot[1] == fingerprint)
data_key = unseal(cipher(key, slot_salt, b"key slot"), 0, wrapped, b"keyhatch store 1 key slot" + store + label)
gcm = cipher(data_key, salt, b"write key" + store)
unseal(gcm, 0, data[-16:], data[:-16])  # the trailer: nothing is believed before this
def block(nonce, what, bound):
    return unseal(gcm, nonce, take(number(4) + 16), b"keyhatch store 1 " + what + store + generation + bound)
json.loads(block(1, b"changes", b""))
secrets = []
for index in range(number(4)):
    place = struct.pack(">I", index)
    meta = json.loads(block(2 + 2 * index, b"meta", place))
    value = block(3 + 2 * index, b"value", place + f"{meta['name']}\0{meta['version']}".encode())
    try:
        meta["value"] = value.decode()
    except UnicodeDecodeError:
        meta["value_base64"] = base64.b64encode(value).decode()
    secrets.append(meta)
assert at == len(data) - 16
print(json.dumps(secrets, indent=1))
