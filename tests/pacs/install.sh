#!/bin/sh
# What `make test-pacs` needs of a Debian or Ubuntu: the PACS (Orthanc with DICOMweb), dcmtk and dicom3tools.
# Does nothing where all of it is there; tries again after `apt-get update`, as the lists of an image may be old.
set -eu

packages="orthanc orthanc-dicomweb dcmtk dicom3tools"

missing() {
    for package in $packages; do
        # shellcheck disable=SC2016  # the format is dpkg-query's
        state=$(dpkg-query --show --showformat='${db:Status-Abbrev}' "$package" 2>/dev/null || true)
        case $state in ii*) ;; *) printf ' %s' "$package" ;; esac
    done
}

wanted=$(missing)
[ -n "$wanted" ] || exit 0
command -v apt-get >/dev/null || { echo "not Debian: install$wanted yourself" >&2; exit 1; }
as_root=""
[ "$(id -u)" -eq 0 ] || as_root="sudo"

# The package may start a PACS of its own; the tests start theirs, on other ports.
install() {
    # shellcheck disable=SC2086  # several words are meant
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $wanted
}

install || { $as_root apt-get update && install; } || { sleep 10 && $as_root apt-get update && install; }
[ -z "$(missing)" ] || { echo "still missing:$(missing)" >&2; exit 1; }
