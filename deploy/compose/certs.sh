#!/bin/sh
# Makes the cluster's authority once, and a certificate for every node named that has none or whose ends soon. A node
# gets its own key and no other's; the authority's stays in a volume that no node mounts.
#
#   CLUSTER=shop certs.sh n1 n2 n3
set -eu

authority=/authority
user=65532

[ -f "$authority/ca.pem" ] || tidings certs init --cluster "$CLUSTER" --out "$authority"
for node in "$@"; do
    certs=/certs/$node
    # Certificates are issued for 90 days.
    if tidings check certs --warning 30d "$certs/$node.pem"; then
        continue
    fi
    tidings certs issue --dir "$authority" --node "$node" --force
    rm -f "$certs/$node.pem" "$certs/$node.key"
    cp "$authority/$node.key" "$certs/"
    chmod 0400 "$certs/$node.key"
    chown "$user:$user" "$certs/$node.key"
    cp "$authority/ca.pem" "$certs/"
    # Last, for it is what the next run looks at.
    cp "$authority/$node.pem" "$certs/"
    rm "$authority/$node.pem" "$authority/$node.key"
done
