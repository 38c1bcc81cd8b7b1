#!/bin/sh
# Makes the certificates of proxymux with openssl (1.1.1 or newer): README.md beside this file
# tells which of them you need, and what to do with them.
#
#   make-certificates.sh ca DIR                        a new authority: DIR/ca.crt, DIR/ca.key
#   make-certificates.sh master DIR OUT NAME...        what agents are shown
#   make-certificates.sh front-door DIR OUT NAME...    what kube-apiserver is shown, over TCP
#   make-certificates.sh apiserver DIR OUT [NAME]      what kube-apiserver shows, over TCP
#   make-certificates.sh node DIR OUT NODE             what an agent shows that has no kubelet's
#
# DIR has the authority's ca.crt and ca.key: /etc/kubernetes/pki of a cluster made by kubeadm.
# OUT is where the new files go. A NAME is a DNS name or an IP address.
# DAYS, 365 if it is not set, is how long a certificate is valid; of an authority ten times that.
# Files that are there already are replaced, keys too, except those of an authority.
set -eu
umask 077

usage() {
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
}

fail() {
    echo "make-certificates.sh: $1" >&2
    exit 1
}

# A common name goes into a subject of openssl's, where these characters mean something.
check_name() {
    case $1 in
        '' | *[!A-Za-z0-9.:_-]*) fail "\"$1\" is no name: letters, digits and . : _ - only" ;;
    esac
}

# The names of a server certificate, as openssl's configuration wants them.
alternative_names() {
    list=
    for name; do
        check_name "$name"
        case $name in
            *:*) kind=IP ;;                # IPv6
            *[!0-9.]*) kind=DNS ;;
            *) kind=IP ;;
        esac
        list="$list${list:+,}$kind:$name"
    done
    echo "$list"
}

# Makes OUT/STEM.key and OUT/STEM.crt: sign STEM SUBJECT EXTENSIONS
sign() {
    key=$out/$1.key cert=$out/$1.crt
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
        -keyout "$scratch/key" -subj "$2" -out "$scratch/request" 2> "$scratch/log" \
        || fail "openssl made no request: $(cat "$scratch/log")"
    printf '%s\n' "$3" > "$scratch/extensions"
    # A serial number of its own, so that the authority's directory stays as it is.
    openssl x509 -req -in "$scratch/request" -CA "$dir/ca.crt" -CAkey "$dir/ca.key" \
        -set_serial "0x00$(openssl rand -hex 15)" -days "$days" -sha256 \
        -extfile "$scratch/extensions" -out "$scratch/cert" 2> "$scratch/log" \
        || fail "openssl signed nothing: $(cat "$scratch/log")"
    # The key first: whoever watches the certificate finds its key there.
    mkdir -p "$out"
    mv "$scratch/key" "$key"
    mv "$scratch/cert" "$cert"
    chmod 0644 "$cert"
    echo "$cert and $key, valid for $days days"
}

extensions() {
    printf 'basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n'
    printf 'extendedKeyUsage=%s\n' "$1"
    [ -z "${2:-}" ] || printf 'subjectAltName=%s\n' "$2"
}

days=${DAYS:-365}
[ $# -ge 2 ] || usage
what=$1 dir=$2
shift 2
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if [ "$what" = ca ]; then
    [ $# -eq 0 ] || usage
    [ ! -e "$dir/ca.key" ] || fail "$dir/ca.key is there already"
    mkdir -p "$dir"
    openssl req -x509 -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 \
        -subj /CN=proxymux-ca -days $((days * 10)) \
        -addext keyUsage=critical,digitalSignature,keyCertSign \
        -keyout "$dir/ca.key" -out "$dir/ca.crt" 2> "$scratch/log" \
        || fail "openssl made no authority: $(cat "$scratch/log")"
    chmod 0644 "$dir/ca.crt"
    echo "$dir/ca.crt and $dir/ca.key, valid for $((days * 10)) days"
    exit 0
fi

[ $# -ge 1 ] || usage
out=$1
shift
for file in "$dir/ca.crt" "$dir/ca.key"; do
    [ -r "$file" ] || fail "cannot read $file"
done
case $what in
    master | front-door)
        [ $# -ge 1 ] || usage
        check_name "$1"
        sign "$what" "/CN=proxymux-$what" "$(extensions serverAuth "$(alternative_names "$@")")"
        ;;
    apiserver)
        [ $# -le 1 ] || usage
        name=${1:-kube-apiserver}
        check_name "$name"
        sign kube-apiserver "/CN=$name" "$(extensions clientAuth)"
        ;;
    node)
        [ $# -eq 1 ] || usage
        check_name "$1"
        sign "$1" "/O=system:nodes/CN=system:node:$1" "$(extensions clientAuth)"
        # As a kubelet keeps them: both in one file.
        cat "$out/$1.crt" "$out/$1.key" > "$scratch/both"
        mv "$scratch/both" "$out/kubelet-client-current.pem"
        rm "$out/$1.crt" "$out/$1.key"
        echo "both in $out/kubelet-client-current.pem"
        ;;
    *) usage ;;
esac
