#!/bin/sh
# Takes the member of this pod out of the cluster, before the StatefulSet is scaled in by one:
#
#   kubectl exec etched-3 -- /tools/sh /scripts/leave.sh
set -eu
number=${NAME##*-}
here="$SCHEME://$HOST_PREFIX$number$HOST_SUFFIX:2380"
id=$(etcdctl --endpoints "$ENDPOINTS" member list | grep -F ", $here, " | cut -d, -f1)
[ -n "$id" ] || {
    echo "leave: no member has the URL $here" >&2
    exit 1
}
# Before the removal, which ends the member and this script with it. Where the removal fails, or this
# is interrupted, the next start sees by the list of members that it has not left.
echo "$UID_OF_POD $id" >"$DATA/left"
# For some seconds after a member was away the others refuse to lose one.
tries=6
until etcdctl --endpoints "$ENDPOINTS" member remove "$id"; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || exit 1
    sleep 2
done
