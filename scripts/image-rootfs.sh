#!/bin/sh
# Lays out the root file system of the image: image-rootfs.sh BINARY FOLDER [SYSTEM_ROOT]. It holds the program, the
# shared libraries it names, certificates, and a user; no shell, no package manager. Same input, same bytes.
set -eu

binary=$1
root=$2
[ -n "$root" ] && [ "$root" != / ] || { echo "image-rootfs: no folder" >&2; exit 1; }

rm -rf "$root"
mkdir -p "$root/usr/local/bin" "$root/etc/ssl/certs" "$root/proc" "$root/sys" "$root/dev"
mkdir -m 1777 "$root/tmp"
cp "$binary" "$root/usr/local/bin/agent-executor"
chmod 755 "$root/usr/local/bin/agent-executor"
# Symbols of a build for tests are many times the program.
strip --strip-all "$root/usr/local/bin/agent-executor"

# Lines such as "libm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x…)" and "/lib64/ld-linux-x86-64.so.2 (0x…)".
ldd "$binary" | sed -n 's/.*\(=> \| \|\t\)\(\/[^ ]*\) (0x.*/\2/p' | sort -u | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
done

cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
echo 'nonroot:x:65532:65532:nonroot:/:/sbin/nologin' >"$root/etc/passwd"
echo 'nonroot:x:65532:' >"$root/etc/group"
# Without it names of /etc/hosts would be asked for last.
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"

# Times are part of a layer.
find "$root" -exec touch --no-dereference --date="@${SOURCE_DATE_EPOCH:-0}" {} +
