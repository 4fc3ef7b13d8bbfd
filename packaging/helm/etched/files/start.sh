#!/bin/sh
# Starts the member of this pod. Without data it founds the cluster with the others, or joins it as
# a learner; with data it continues. A learner is promoted once it has caught up.
#
# NAME            name of the pod, which ends with its number
# UID_OF_POD      its id
# HOST_PREFIX, HOST_SUFFIX   around a number they are the host of that member
# ENDPOINTS       where the cluster answers
# INITIAL         how many members found it; 0 where that was done, so that none founds it again
# DATA            the volume
# LISTEN          address to listen on
# SCHEME          http or https; ETCD_* and ETCDCTL_* name the files of certificates
set -u
number=${NAME##*-}
peer() { echo "$SCHEME://$HOST_PREFIX$1$HOST_SUFFIX:2380"; }
here=$(peer "$number")
say() { echo "start: $*" >&2; }

cluster() { etcdctl --endpoints "$ENDPOINTS" --dial-timeout 3s --command-timeout 10s "$@"; }
# Fields of a member: id, status, name, peer URLs, client URLs, whether it is a learner.
listed() { cluster member list 2>/dev/null; }
line_of_this() { grep -F ", $here, "; }

# Until this member has a vote.
promote() {
    # As long as the member runs, which has the process of this script.
    while sleep 2 && kill -0 $$ 2>/dev/null; do
        line=$(listed | line_of_this) || continue
        case $line in
        *", true") cluster member promote "${line%%,*}" >/dev/null 2>&1 && say "promoted" ;;
        *) return ;;
        esac
    done
}

# Sets state and members, where there is no data.
join() {
    while :; do
        members=$(listed) && [ -n "$members" ] || members=
        if [ -z "$members" ]; then
            if [ "$number" -lt "$INITIAL" ]; then
                found
                return
            fi
            say "no member of the cluster answers at $ENDPOINTS; waiting"
            sleep 5
            continue
        fi
        line=$(echo "$members" | line_of_this) || line=
        case $line in
        "")
            # One learner at a time: the others are refused until it is promoted.
            cluster member add "$NAME" --learner --peer-urls "$here" >/dev/null || sleep 5
            ;;
        *", unstarted, "*)
            state=existing
            initial=$(echo "$members" | awk -F ', ' -v url="$here" -v name="$NAME" \
                '{ printf "%s%s=%s", (NR > 1 ? "," : ""), ($4 == url ? name : $3), $4 }')
            return
            ;;
        *)
            # A founder that the others did not wait for has no client URLs.
            if [ "$INITIAL" -gt 0 ] && echo "$line" | grep -qF ", $here, , "; then
                found
                return
            fi
            say "this member has lost its data; it is removed and joins again"
            cluster member remove "${line%%,*}" >/dev/null || sleep 5
            ;;
        esac
    done
}

found() {
    state=new
    initial=
    i=0
    while [ "$i" -lt "$INITIAL" ]; do
        initial=$initial${initial:+,}${NAME%-*}-$i=$(peer "$i")
        i=$((i + 1))
    done
}

# What leave.sh wrote before it asked for the removal. If that was done, the same pod waits for its
# end, and a new one begins anew. Where nobody answers the member runs: the others turn it away if
# it has left.
if [ -f "$DATA/left" ] && members=$(listed) && [ -n "$members" ]; then
    read -r uid id <"$DATA/left"
    if [ -z "$id" ] || echo "$members" | grep -q "^$id, "; then
        say "this member was to leave the cluster and has not; it continues"
        rm "$DATA/left"
    else
        while [ "$uid" = "$UID_OF_POD" ]; do
            say "this member has left the cluster; waiting to be scaled in"
            sleep 30
        done
        rm -rf "$DATA/data" "$DATA/left"
    fi
fi
state=existing
initial=$NAME=$here
# A start that ended before the member knew who it is leaves directories and no data; an etcd has
# its own.
if [ ! -e "$DATA/data/member/IDENTITY" ] && [ ! -e "$DATA/data/etched/IDENTITY" ] &&
    [ ! -e "$DATA/data/member/snap" ]; then
    join
    say "$state: $initial"
fi
promote &
exec etcd --name "$NAME" --data-dir "$DATA/data" \
    --listen-client-urls "$SCHEME://$LISTEN:2379" \
    --advertise-client-urls "$SCHEME://$HOST_PREFIX$number$HOST_SUFFIX:2379" \
    --listen-peer-urls "$SCHEME://$LISTEN:2380" --initial-advertise-peer-urls "$here" \
    --listen-metrics-urls "http://$LISTEN:2381" \
    --initial-cluster "$initial" --initial-cluster-state "$state"
