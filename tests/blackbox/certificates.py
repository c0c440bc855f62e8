"""Certificates for tests: an authority of our own, and what it signs, rightly or wrongly."""

import datetime
import ipaddress
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)


class Issued:
    """A certificate and its key as PEM files."""

    def __init__(self, folder, name, certificate, key):
        self.certificate, self.key = folder / f"{name}.pem", folder / f"{name}.key"
        self.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        with open(os.open(self.key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(key.private_bytes(serialization.Encoding.PEM, pkcs8, plain))


class Authority:
    """Signs certificates; who trusts `file` trusts them."""

    def __init__(self, folder, name="ca"):
        self.folder, self.name = Path(folder), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.key = ec.generate_private_key(ec.SECP256R1())
        builder = self.builder(self.name, self.key, -DAY, DAY)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(usage, critical=True)
        self.file = Issued(self.folder, name, builder.sign(self.key, hashes.SHA256()), self.key).certificate

    def server(self, name="server", host="127.0.0.1", starts=-DAY, ends=DAY):
        """A certificate for a server; `host` is the address or name that it is for."""
        try:
            names = [x509.IPAddress(ipaddress.ip_address(host))]
        except ValueError:
            names = [x509.DNSName(host)]
        return self.issue(name, names, ExtendedKeyUsageOID.SERVER_AUTH, starts, ends)

    def client(self, name, starts=-DAY, ends=DAY):
        """A certificate by which a client shows who it is."""
        return self.issue(name, [x509.DNSName(name)], ExtendedKeyUsageOID.CLIENT_AUTH, starts, ends)

    def issue(self, name, names, usage, starts, ends):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self.builder(subject, key, starts, ends)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        return Issued(self.folder, name, builder.sign(self.key, hashes.SHA256()), key)

    def builder(self, subject, key, starts, ends):
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key.public_key())
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return (
            builder.serial_number(x509.random_serial_number())
            .not_valid_before(now + starts)
            .not_valid_after(now + ends)
            .add_extension(identifier, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
