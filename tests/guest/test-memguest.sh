#!/bin/bash
# The process guest, stopped ten times while it writes: its memory is the state after one write, its event areas are
# in a legal state, and it ends without error. Then one byte is damaged: both the checker and the guest see it.
#
#     test-memguest.sh MEMGUEST SEQCHECK ARGUMENT…      exit status 77: this machine has not got such memory
set -u
memguest=$1 seqcheck=$2
shift 2

fail() {
    echo "FAILED: $*"
    exit 1
}

case $* in
*hugetlb*)
    pages=/proc/sys/vm/nr_hugepages
    if [ "$(cat $pages)" -lt 64 ] && [ -w $pages ]; then echo 64 >$pages; fi
    ;;
esac

coproc guest { exec "$memguest" "$@"; }
pid=$! # of the coprocess
exec {from_guest}<&"${guest[0]}"
trap 'kill -9 $pid 2>/dev/null' EXIT
read -r -t 20 ready <&"$from_guest" || { wait "$pid"; exit $?; }
echo "$ready"
address=${ready#*arena=} && address=${address%% *}

# SIGSTOP, until every thread has stopped.
freeze() {
    kill -STOP "$pid"
    while grep -L -E '^State:[[:space:]]+T' /proc/"$pid"/task/*/status | grep -q .; do sleep 0.01; done
}

for _ in {1..10}; do
    sleep "0.0$((RANDOM % 10))"
    freeze
    "$seqcheck" --pid "$pid" --address "$address" || fail "a frozen guest is not in the state after one write"
    kill -CONT "$pid"
done
kill -USR1 "$pid"
read -r -t 20 line <&"$from_guest" || fail "no line after SIGUSR1"
echo "$line"
[[ $line == n=*" errors=0" ]] || fail "what SIGUSR1 printed"

freeze
# Page 0, slot 0: the first byte behind the header page.
page=${ready#*page-size=} && page=${page%% *}
byte=$(dd if="/proc/$pid/mem" bs=1 skip=$((address + page)) count=1 status=none | od -An -tu1)
printf "\\x$(printf %02x $((byte ^ 4)))" |
    dd of="/proc/$pid/mem" bs=1 seek=$((address + page)) conv=notrunc status=none
"$seqcheck" --pid "$pid" --address "$address" && fail "the checker passed a damaged arena"
kill -CONT "$pid"
sleep 0.5
kill -TERM "$pid"
read -r -t 20 line <&"$from_guest" || fail "no line at the end"
echo "$line"
wait "$pid"
status=$?
[ $status = 1 ] || fail "exit status $status with a damaged page"
[[ $line == errors=0* ]] && fail "the guest did not see the damaged page"
exit 0
