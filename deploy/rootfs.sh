#!/bin/sh
# Lays out the root directory of an image around a built program: the program, the shared libraries that it asks
# for, and a user. Needs no network.
#
#   deploy/rootfs.sh target/release/tidings target/image
set -eu

program=${1:?usage: rootfs.sh PROGRAM DIRECTORY}
root=${2:?usage: rootfs.sh PROGRAM DIRECTORY}
# Nobody in particular, and the same number in every manifest here.
user=65532

if [ -e "$root" ]; then
    echo "$root is there: remove it first" >&2
    exit 1
fi
mkdir -p "$root/etc/tidings" "$root/certs" "$root/usr/bin"
cp "$program" "$root/usr/bin/tidings"
# Names of functions stay for backtraces; what only a debugger reads is four fifths of the file.
strip --strip-debug "$root/usr/bin/tidings" 2>/dev/null || echo "no strip: the program keeps what debuggers read" >&2
# Where the loader looks for them. A static program has none.
ldd "$program" 2>/dev/null | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
done
echo "tidings:x:$user:$user::/:/usr/bin/tidings" > "$root/etc/passwd"
echo "tidings:x:$user:" > "$root/etc/group"
