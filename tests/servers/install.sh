#!/bin/sh
# Installs what the test servers need: install.sh TOOLSDIR
#
# Needs Python 3.10 or newer with venv. Makes the virtual environment
# TOOLSDIR/pymodbus, unless it is there; run the servers with its bin/python.
set -eu

pymodbus=3.16.1
pyserial=3.5
versions="pymodbus $pymodbus, pyserial $pyserial"

[ $# -eq 1 ] || { echo "usage: $0 TOOLSDIR" >&2; exit 2; }
venv=$1/pymodbus

# The stamp is written last: an interrupted installation, or one of another
# version, is repeated.
if [ "$(cat "$venv/installed" 2>/dev/null)" = "$versions" ]; then
    echo "servers: $versions are installed"
    exit 0
fi
echo "servers: installing $versions"
mkdir -p "$1"
python3 -m venv --clear "$venv"
"$venv/bin/pip" install --quiet "pymodbus==$pymodbus" "pyserial==$pyserial"
echo "$versions" >"$venv/installed"
echo "servers: done"
