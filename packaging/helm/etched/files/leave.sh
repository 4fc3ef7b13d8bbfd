#!/bin/sh
# Takes the member of this pod out of the cluster, before the StatefulSet is scaled in by one:
#
#   kubectl exec etched-3 -- /tools/sh /scripts/leave.sh
set -eu
number=${NAME##*-}
here="$SCHEME://$HOST_PREFIX$number$HOST_SUFFIX:2380"
id=$(etcdctl --endpoints "$ENDPOINTS" member list | grep -F ", $here, " | cut -d, -f1)
echo "$UID_OF_POD" >"$DATA/left"
# For some seconds after a member was away the others refuse to lose one.
tries=6
until etcdctl --endpoints "$ENDPOINTS" member remove "$id"; do
    tries=$((tries - 1))
    if [ "$tries" = 0 ]; then
        rm "$DATA/left"
        exit 1
    fi
    sleep 2
done
