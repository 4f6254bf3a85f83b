#!/bin/sh
# For scripts/test-image: what the entrypoint of the official nginx image does as far as this project relies on it, which
# is what its documentation says. Not that entrypoint.
#
#   - when the command is nginx, whatever is executable in /docker-entrypoint.d runs first, in order of name; *.envsh is
#     read into this shell
#   - then the command takes this process's place
set -e
if [ "$1" = nginx ]; then
    for step in /docker-entrypoint.d/*; do
        [ -x "$step" ] || continue
        case $step in
            *.envsh)
                # shellcheck source=/dev/null
                . "$step"
                ;;
            *.sh) "$step" ;;
        esac
    done
fi
exec "$@"
