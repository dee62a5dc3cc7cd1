#!/bin/sh
# isa_symbols.sh NM ISA OBJECT...: whatever the objects of an instruction set define lies in its
# namespace. Of a function that several objects define, an inline one of the standard library say, the
# linker keeps any: it might keep the one for newer processors.
set -eu
nm=$1 isa=$2
shift 2
foreign=$("$nm" --defined-only --extern-only --format=posix "$@" |
  grep -v "^_Z[A-Za-z0-9_]*${#isa}$isa\|^DW\.ref\.__gxx_personality_v0 \|^[^ ]*:\$" || true)
if [ -n "$foreign" ]; then
  echo "outside of namespace fastrnn::$isa:"
  echo "$foreign"
  exit 1
fi
