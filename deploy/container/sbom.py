#!/usr/bin/env python3
"""The software bill of materials of a build, as SPDX 2.3 in JSON: deploy/container/sbom.py BUILD >nsa-metadata-server.spdx.json

Of an image: with --programs FOLDER, where the programs lie that it is of, stripped or copied from the build's; with --packages FOLDER, where a
file a package says what lies beside them, as dpkg's status.d. Without, the build's own programs and this machine's packages.

From what the build did, not from what it asked for: the shared libraries that the programs load, the packages of the headers and archives
that were compiled and linked into them (ninja's record), and the compilers. SOURCE_DATE_EPOCH sets the time that it says. Ends with an error
that names the file where one belongs to no Debian package and to no CUDA toolkit.
"""

import argparse
import datetime
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

PROGRAMS = ("server/nsa-metadata-server", "client/nsa-metadata")
NAME = "nsa-metadata-server"


def output(*command):
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


def compiled(build, target):
    """Objects that `target` is linked from, its archives' too, and archives and data that come from elsewhere."""
    lines = output("ninja", "-C", build, "-t", "inputs", target).split()
    return {line for line in lines if line.endswith(".o")}, {Path(line) for line in lines if line.startswith("/") and (line.endswith(".a") or "/share/" in line)}


def headers(build, objects):
    """What the compilers read for them, outside the project."""
    read, wanted = set(), False
    for line in output("ninja", "-C", build, "-t", "deps").splitlines():
        if line and not line.startswith(" "):
            wanted = line.split(":")[0] in objects
        elif wanted and (line.strip().startswith(("/usr/", "/opt/")) or "/site-packages/nvidia/" in line):
            read.add(Path(os.path.normpath(line.strip())))
    return read


def shared_libraries(program):
    return {Path(found) for found in re.findall(r"=> (/\S+)", output("ldd", program))}


class Packages:
    """Debian's packages by their files, and the CUDA toolkit."""

    def __init__(self):
        self._owners = {}
        for listing in Path("/var/lib/dpkg/info").glob("*.list"):
            package = listing.stem.split(":")[0]
            for line in listing.read_text().splitlines():
                # A file may be known by its path from before /lib became a link to /usr/lib.
                self._owners[line.removeprefix("/usr")] = package

    def of(self, path):
        for name in (path, path.resolve()):
            owner = self._owners.get(str(name).removeprefix("/usr"))
            if owner:
                return owner
        if any(re.match(r"cuda|nvidia", part) for part in path.parts):
            return "cuda-toolkit"
        sys.exit(f"{path} belongs to no package")


def from_pypi():
    """{name: version} of the definitions that were fetched and compiled in."""
    lines = (Path(__file__).resolve().parents[2] / "proto" / "requirements.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def shipped_packages(folder):
    """{name: (version, architecture)} of a status.d."""
    fields = [dict(re.findall(r"^(Package|Version|Architecture): (.*)$", path.read_text(), re.MULTILINE)) for path in Path(folder).iterdir()]
    return {one["Package"]: (one["Version"], one["Architecture"]) for one in fields}


def facts(package, shipped):
    """Version, supplier and package URL."""
    if package in from_pypi():
        version = from_pypi()[package]
        return version, "NOASSERTION", f"pkg:pypi/{package}@{version}"
    if package == "cuda-toolkit":
        version = re.search(r"release [\d.]+, V([\d.]+)", output(nvcc(), "--version"))[1]
        return version, "Organization: NVIDIA Corporation", f"pkg:generic/cuda-toolkit@{version}"
    version, architecture = shipped.get(package) or output("dpkg-query", "--show", "--showformat=${Version} ${Architecture}\n", package).splitlines()[0].split()
    return version, "Organization: Debian", f"pkg:deb/debian/{package}@{version.replace('+', '%2B').replace('~', '%7E')}?arch={architecture}"


def nvcc():
    return os.environ.get("CUDACXX", "/usr/local/cuda/bin/nvcc")


def spdx_id(name):
    return "SPDXRef-" + re.sub(r"[^A-Za-z0-9.-]", "-", name)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--programs", type=Path)
    parser.add_argument("--packages", type=Path)
    arguments = parser.parse_args()
    build, packages = arguments.build, Packages()
    shipped = shipped_packages(arguments.packages) if arguments.packages else {}
    loaded, built_in = set(), set()
    for program in PROGRAMS:
        objects, archives = compiled(build, program)
        loaded |= {packages.of(path) for path in shared_libraries(build / program)}
        built_in |= {packages.of(path) for path in headers(build, objects) | archives}
    built_in |= from_pypi().keys()
    compilers = {packages.of(Path(os.path.realpath("/usr/bin/c++")))}
    if "cuda-toolkit" in built_in:
        compilers.add("cuda-toolkit")

    version = output(build / PROGRAMS[0], "--version").split()[1]
    when = datetime.datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", datetime.datetime.now().timestamp())), datetime.UTC)
    described = {program: (arguments.programs / Path(program).name if arguments.programs else build / program).read_bytes() for program in PROGRAMS}
    sums = {program: hashlib.sha256(content).hexdigest() for program, content in described.items()}
    document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"{NAME}-{version}",
        "documentNamespace": f"urn:{NAME}:{version}:{hashlib.sha256(''.join(sums.values()).encode()).hexdigest()[:32]}",
        "creationInfo": {"created": when.strftime("%Y-%m-%dT%H:%M:%SZ"), "creators": ["Tool: deploy/container/sbom.py"]},
        "packages": [{
            "SPDXID": spdx_id(NAME), "name": NAME, "versionInfo": version, "downloadLocation": "NOASSERTION", "filesAnalyzed": False,
            "licenseConcluded": "Apache-2.0", "licenseDeclared": "Apache-2.0", "copyrightText": "NOASSERTION", "primaryPackagePurpose": "APPLICATION",
        }],
        "files": [{
            "SPDXID": spdx_id(f"file-{Path(program).name}"), "fileName": f"./{Path(program).name}", "licenseConcluded": "Apache-2.0",
            "copyrightText": "NOASSERTION", "checksums": [{"algorithm": "SHA256", "checksumValue": value},
                                                         {"algorithm": "SHA1", "checksumValue": hashlib.sha1(described[program]).hexdigest()}],
        } for program, value in sums.items()],
    }
    document["relationships"] = [
        {"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": element["SPDXID"]}
        for element in document["packages"] + document["files"]]
    # A package may stand in several relations: the compiler's headers are compiled in.
    for package in sorted(loaded | built_in | compilers | shipped.keys()):
        # What was compiled in is of the machine that built it.
        package_version, supplier, url = facts(package, {} if package in built_in | compilers and package not in loaded else shipped)
        document["packages"].append({
            "SPDXID": spdx_id(package), "name": package, "versionInfo": package_version, "supplier": supplier, "downloadLocation": "NOASSERTION",
            "filesAnalyzed": False, "licenseConcluded": "NOASSERTION", "licenseDeclared": "NOASSERTION", "copyrightText": "NOASSERTION",
            "externalRefs": [{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": url}],
        })
        if package in shipped.keys() - loaded:
            document["relationships"].append(
                {"spdxElementId": spdx_id(package), "relationshipType": "RUNTIME_DEPENDENCY_OF", "relatedSpdxElement": spdx_id(NAME)})
        if package in loaded:
            document["relationships"].append(
                {"spdxElementId": spdx_id(NAME), "relationshipType": "DYNAMIC_LINK", "relatedSpdxElement": spdx_id(package)})
        if package in built_in:
            document["relationships"].append(
                {"spdxElementId": spdx_id(NAME), "relationshipType": "STATIC_LINK", "relatedSpdxElement": spdx_id(package)})
        if package in compilers:
            document["relationships"].append(
                {"spdxElementId": spdx_id(package), "relationshipType": "BUILD_TOOL_OF", "relatedSpdxElement": spdx_id(NAME)})
    json.dump(document, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
