#!/usr/bin/env bash
# Claims about tune.sh, shown on a made-up host below a temporary directory: nothing on this machine is changed.
# Prints one line for each claim; exit 1 when one of them does not hold.
# shellcheck disable=SC2317 # the predicates are called by name, through `claim`
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tune=$here/../tune.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

main() {
    check_tells_what_differs
    check_passes_after_apply
    apply_never_lowers_what_the_host_has_more_of
    apply_leaves_a_sufficient_limit_out_of_the_boot_file
    apply_twice_changes_nothing_more
    apply_skips_absent_and_read_only_keys_without_failing_the_rest
    apply_loads_bbr_where_it_can
    apply_warns_where_bbr_is_lacking
    dry_run_changes_nothing
    undo_restores_exactly
    undo_restores_what_was_there_before_the_first_of_two_applies
    undo_puts_back_a_file_that_stood_there
    undo_keeps_the_saved_values_when_one_could_not_be_restored
    undo_without_apply_does_nothing
    wrong_arguments_exit_2
    every_key_has_a_reason
    exit "$failed"
}

# A host as it comes out of the box: one line for each key.
new_host() {
    host=$work/host
    rm -rf "$host"
    local key value
    while read -r key value; do
        put "$key" "$value"
    done <<'KEYS'
net.core.somaxconn 4096
net.ipv4.tcp_max_syn_backlog 2048
net.core.netdev_max_backlog 1000
net.ipv4.tcp_fastopen 1
net.ipv4.ip_local_port_range 32768 60999
net.ipv4.tcp_tw_reuse 2
net.ipv4.tcp_fin_timeout 60
net.ipv4.tcp_congestion_control cubic
net.ipv4.tcp_available_congestion_control reno cubic bbr
net.core.default_qdisc pfifo_fast
net.ipv4.tcp_slow_start_after_idle 1
net.ipv4.tcp_mtu_probing 0
net.ipv4.tcp_rmem 4096 131072 6291456
net.ipv4.tcp_wmem 4096 16384 4194304
net.core.rmem_max 212992
net.core.wmem_max 212992
fs.nr_open 1048576
fs.file-max 9223372036854775807
kernel.io_uring_disabled 2
KEYS
}

path() { echo "$host/proc/sys/${1//./\/}"; }
put() { mkdir -p "$(dirname "$(path "$1")")" && printf '%s\n' "${*:2}" >"$(path "$1")"; }
value() { cat "$(path "$1")"; }
tune() { "$tune" "$@" --root "$host" >"$work/out" 2>&1; }
fingerprint() { (cd "$host" && find . -type f | sort | xargs -d '\n' sha256sum && find . | sort) | sha256sum; }

claim() {
    local name=${FUNCNAME[1]} what=$1
    shift
    if "$@"; then
        echo "ok    $name: $what"
    else
        echo "FAIL  $name: $what ($*)"
        sed 's/^/      | /' "$work/out"
        failed=1
    fi
}
same() { [[ $1 == "$2" ]]; }
says() { grep -qE -- "$1" "$work/out"; }
exits() { local want=$1 got=0; shift; "$@" || got=$?; [[ $got == "$want" ]]; }
not() { ! "$@"; }

check_tells_what_differs() {
    new_host
    claim "exit 1" exits 1 tune check
    claim "a key that differs" says '^net.core.somaxconn +4096 +65535 +no$'
    claim "a key that is good" says '^fs.nr_open +1048576 +1048576 +yes$'
    claim "a key that the kernel lacks" says '^net.netfilter.nf_conntrack_max .*absent$'
}

check_passes_after_apply() {
    new_host
    claim "apply works" exits 0 tune apply
    claim "check agrees" exits 0 tune check
    claim "a single value" same "$(value net.ipv4.tcp_tw_reuse)" 1
    claim "a list" same "$(value net.ipv4.tcp_wmem)" "4096 16384 16777216"
    claim "kept for the next boot" grep -qx 'net.core.default_qdisc = fq' "$host/etc/sysctl.d/90-millrace.conf"
    claim "limits of logins" grep -q '^millrace .* nofile ' "$host/etc/security/limits.d/90-millrace.conf"
}

apply_never_lowers_what_the_host_has_more_of() {
    new_host
    put net.core.somaxconn 100000
    put net.ipv4.tcp_rmem "8192 262144 6291456"
    put net.ipv4.ip_local_port_range "1024 60000"
    tune apply
    claim "a number" same "$(value net.core.somaxconn)" 100000
    claim "the largest number there is" same "$(value fs.file-max)" 9223372036854775807
    claim "each field of a list" same "$(value net.ipv4.tcp_rmem)" "8192 262144 16777216"
    claim "a range is only widened" same "$(value net.ipv4.ip_local_port_range)" "1024 65535"
}

apply_leaves_a_sufficient_limit_out_of_the_boot_file() {
    new_host
    tune apply
    tune apply
    claim "its own figure may grow" not grep -q fs.file-max "$host/etc/sysctl.d/90-millrace.conf"
    claim "a limit that was raised is there" grep -q net.core.somaxconn "$host/etc/sysctl.d/90-millrace.conf"
}

apply_twice_changes_nothing_more() {
    new_host
    tune apply
    local before
    before=$(fingerprint)
    claim "second apply works" exits 0 tune apply
    claim "not one file differs" same "$(fingerprint)" "$before"
    claim "nothing was set" not says '^set '
}

# /proc/sys/kernel/ostype can be read and by nobody be written, not even by root: as a key in a container.
apply_skips_absent_and_read_only_keys_without_failing_the_rest() {
    new_host
    ln -sf /proc/sys/kernel/ostype "$(path net.ipv4.tcp_fin_timeout)"
    # A write that is taken and forgotten is no success either.
    ln -sf /dev/null "$(path net.ipv4.tcp_mtu_probing)"
    rm "$(path kernel.io_uring_disabled)"
    claim "exit 0" exits 0 tune apply
    claim "forgotten is told" says '^skipped  net.ipv4.tcp_mtu_probing: cannot be written'
    claim "read-only is told" says '^skipped  net.ipv4.tcp_fin_timeout: cannot be written'
    claim "absent is told" says '^skipped  kernel.io_uring_disabled: this kernel does not have it'
    claim "a later key is set" same "$(value fs.nr_open)/$(value net.core.rmem_max)" 1048576/16777216
    claim "not in the boot file" not grep -qE 'fin_timeout|io_uring' "$host/etc/sysctl.d/90-millrace.conf"
}

apply_loads_bbr_where_it_can() {
    new_host
    put net.ipv4.tcp_available_congestion_control reno cubic
    mkdir -p "$host/sbin"
    # shellcheck disable=SC2016 # $1 is the fake modprobe's
    printf '#!/bin/sh\n[ "$1" = tcp_bbr ] && echo reno cubic bbr >%s\n' \
        "$(path net.ipv4.tcp_available_congestion_control)" >"$host/sbin/modprobe"
    chmod +x "$host/sbin/modprobe"
    claim "exit 0" exits 0 tune apply
    claim "no warning" not says WARNING
    claim "the module is there" grep -q bbr "$(path net.ipv4.tcp_available_congestion_control)"
}

apply_warns_where_bbr_is_lacking() {
    new_host
    put net.ipv4.tcp_available_congestion_control reno cubic
    # A kernel without BBR refuses the write.
    ln -sf /proc/sys/kernel/ostype "$(path net.ipv4.tcp_congestion_control)"
    claim "exit 0" exits 0 tune apply
    claim "the warning names what is offered" says 'WARNING.*no BBR \(only: reno cubic\)'
    claim "the rest is set" same "$(value net.core.somaxconn)" 65535
}

dry_run_changes_nothing() {
    new_host
    local before
    before=$(fingerprint)
    claim "apply exits 0" exits 0 tune apply --dry-run
    claim "it says what it would do" says '^would    net.core.somaxconn = 65535 \(now 4096\)'
    claim "apply leaves all" same "$(fingerprint)" "$before"
    tune apply
    before=$(fingerprint)
    claim "undo exits 0" exits 0 tune undo --dry-run
    claim "undo leaves all" same "$(fingerprint)" "$before"
}

undo_restores_exactly() {
    new_host
    mkdir -p "$host/etc/sysctl.d" "$host/etc/security/limits.d" "$host/var/lib/millrace"
    local before
    before=$(fingerprint)
    tune apply
    claim "apply changed something" not same "$(fingerprint)" "$before"
    claim "undo works" exits 0 tune undo
    claim "the host is as it was" same "$(fingerprint)" "$before"
}

undo_restores_what_was_there_before_the_first_of_two_applies() {
    new_host
    tune apply
    put net.core.somaxconn 1
    tune apply
    tune undo
    claim "not our own value, nor the one between" same "$(value net.core.somaxconn)" 4096
}

undo_puts_back_a_file_that_stood_there() {
    new_host
    mkdir -p "$host/etc/sysctl.d"
    echo 'net.core.somaxconn = 7' >"$host/etc/sysctl.d/90-millrace.conf"
    tune apply
    tune apply
    tune undo
    claim "its old text" same "$(cat "$host/etc/sysctl.d/90-millrace.conf")" 'net.core.somaxconn = 7'
    claim "the other file is gone" not test -e "$host/etc/security/limits.d/90-millrace.conf"
}

undo_keeps_the_saved_values_when_one_could_not_be_restored() {
    new_host
    tune apply
    ln -sf /proc/sys/kernel/ostype "$(path net.ipv4.tcp_fin_timeout)"
    claim "exit 1" exits 1 tune undo
    claim "it names the key" says '^FAILED   net.ipv4.tcp_fin_timeout'
    claim "the others are back" same "$(value net.core.somaxconn)" 4096
    rm "$(path net.ipv4.tcp_fin_timeout)"
    put net.ipv4.tcp_fin_timeout 15
    claim "a second undo finishes" exits 0 tune undo
    claim "the last key is back" same "$(value net.ipv4.tcp_fin_timeout)" 60
}

undo_without_apply_does_nothing() {
    new_host
    local before
    before=$(fingerprint)
    claim "exit 0" exits 0 tune undo
    claim "it says so" says '^nothing to undo'
    claim "nothing changed" same "$(fingerprint)" "$before"
}

wrong_arguments_exit_2() {
    new_host
    claim "no action" exits 2 tune
    claim "an unknown flag" exits 2 tune check --dry-runn
    claim "a root that is not there" exits 2 "$tune" check --root "$work/nowhere" 2>"$work/out"
}

# The conf file is documentation too: a comment (other than a mark) stands above each key, or above the pair it belongs to.
every_key_has_a_reason() {
    local without
    without=$(awk '/^#/ { if ($2 !~ /^@/) reason = 1; next } /^$/ { reason = 0; next } /=/ { if (!reason) print $1 }' \
        "$here/../90-millrace.conf")
    claim "no key without" same "$without" ""
}

main
