"""Authorities, and the certificates they issue, as PEM files."""

import dataclasses
import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

DAY = datetime.timedelta(days=1)


def name_of(text):
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def alternative(name):
    if "://" in name:
        return x509.UniformResourceIdentifier(name)
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@dataclasses.dataclass
class Pair:
    certificate: bytes
    key: bytes
    serial: int

    def write(self, folder, name):
        """Their files, NAME.crt and NAME.key."""
        certificate, key = Path(folder, f"{name}.crt"), Path(folder, f"{name}.key")
        certificate.write_bytes(self.certificate)
        key.write_bytes(self.key)
        return certificate, key


class Authority:
    def __init__(self, name="Test Root"):
        self._name, self._key = name_of(name), ec.generate_private_key(ec.SECP256R1())
        own = self._builder(self._name, self._key, datetime.timedelta(days=30))
        own = own.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.certificate = own.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _builder(self, subject, key, lasts, begins=-10 * DAY):
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins)
            .not_valid_after(now + lasts)
        )

    def issue(self, *names, common_name="test", lasts=DAY, begins=-10 * DAY, passphrase=None, key=None):
        """A pair whose subject alternative names are DNS names, IP addresses and URIs. lasts, begins: from now; may be past."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(name_of(common_name), key, lasts, begins)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([alternative(n) for n in names]), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        secret = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        return Pair(
            certificate.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret),
            certificate.serial_number,
        )
