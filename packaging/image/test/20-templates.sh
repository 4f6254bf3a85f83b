#!/bin/sh
# /etc/nginx/templates/NAME.template becomes /etc/nginx/conf.d/NAME, with the names that the environment has filled in.
set -eu
[ -d /etc/nginx/templates ] || exit 0
if [ ! -w /etc/nginx/conf.d ]; then
    echo "$0: /etc/nginx/conf.d is not writable" >&2
    exit 0
fi
# Only names that are set: nginx has variables of its own.
# shellcheck disable=SC2016
names=$(env | cut -d= -f1 | grep -E '^[A-Za-z_][A-Za-z0-9_]*$' | sed 's/.*/${&}/' | tr '\n' ' ')
for template in /etc/nginx/templates/*.template; do
    [ -f "$template" ] || continue
    name=$(basename "$template" .template)
    envsubst "$names" <"$template" >"/etc/nginx/conf.d/$name"
done
