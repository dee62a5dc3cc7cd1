#!/bin/sh
# isa_symbols.sh NM ISA OBJECT...: whatever the objects of an instruction set define lies in its
# namespace. Of a function that several objects define, an inline one of the standard library say, the
# linker keeps any: it might keep the one for newer processors.
set -eu
nm=$1 isa=$2
shift 2
symbols=$("$nm" --defined-only --extern-only --format=posix "$@")
own="^_Z[A-Za-z0-9_]*${#isa}$isa"
if ! echo "$symbols" | grep -q "$own"; then
  echo "nothing of namespace fastrnn::$isa in: $*"
  exit 1
fi
if foreign=$(echo "$symbols" | grep -v "$own\|^DW\.ref\.__gxx_personality_v0 \|^[^ ]*:\$"); then
  echo "outside of namespace fastrnn::$isa:"
  echo "$foreign"
  exit 1
fi
