#!/bin/sh
# The container's first process. Docker makes a missing `-v` folder as root's, so this starts as root,
# hands the three folders to the service's user, and becomes that user before anything else runs.
# Started as another user (docker run --user, Kubernetes runAsUser) it only becomes the service.
set -eu

root=${VISIONGATE_ROOT:-/app}
user=${VISIONGATE_USER:-10001}

if [ "$(id -u)" = 0 ]; then
  for folder in "$root/logs" "$root/.cache" "$root/data"; do
    mkdir -p "$folder"
    # Only what is not the user's yet: a cache of gigabytes is not walked at every start.
    if [ "$(stat -c %u "$folder")" != "$user" ]; then
      chown -R "$user:$user" "$folder" || echo "note: $folder cannot be handed to user $user" >&2
    fi
  done
  exec setpriv --reuid="$user" --regid="$user" --clear-groups --no-new-privs "$@"
fi
exec "$@"
