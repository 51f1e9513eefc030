#!/bin/sh
# Usage: fuzz.sh TIME
# Runs each fuzz test of the module for TIME, one after the other.
set -eu
cd "$(dirname "$0")/.."
time=$1

found=0
for file in $(grep -rl --include='*_test.go' '^func Fuzz' internal); do
	for name in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$file"); do
		found=$((found + 1))
		go test -run '^$' -fuzz "^$name\$" -fuzztime "$time" "./$(dirname "$file")"
	done
done
echo "fuzz: $found tests, $time each"
