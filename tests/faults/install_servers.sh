#!/usr/bin/env bash
# Installs what tests start on loopback and no package of Python has, where it is not there yet: object stores, and a
# browser with axe-core, which looks for faults of accessibility. Nothing starts by itself.
set -euo pipefail
cd "$(dirname "$0")/../.."
AZURITE=azurite@3.35.0
AXE=axe-core@4.14.1

packages=()
for program in ceph-mon ceph-osd radosgw; do
  command -v $program > /dev/null || packages+=($program)
done
command -v chromium > /dev/null || packages+=(chromium)
command -v chromedriver > /dev/null || packages+=(chromium-driver)
command -v npm > /dev/null || packages+=(npm)

if [ ${#packages[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
    echo "the tests' stores and browser need ${packages[*]}: install them as root (apt-get install ${packages[*]}), then run make servers again" >&2
    exit 1
  fi
  # Debian starts what it installs, unless this program says no.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' > $policy
    chmod +x $policy
  fi
  echo "Installing ${packages[*]} ..."
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${packages[@]}" > /dev/null
fi

if [ ! -x build/servers/node_modules/.bin/azurite-blob ]; then
  echo "Installing $AZURITE into build/servers ..."
  npm install --prefix build/servers --no-audit --no-fund --ignore-scripts --loglevel=error $AZURITE > /dev/null
fi
if [ ! -e build/servers/node_modules/axe-core/axe.min.js ]; then
  echo "Installing $AXE into build/servers ..."
  npm install --prefix build/servers --no-audit --no-fund --ignore-scripts --loglevel=error $AXE > /dev/null
fi
echo "The stores and the browser of the tests are installed: Ceph, azurite, Chromium with axe-core."
