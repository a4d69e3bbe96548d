#!/usr/bin/env bash
# Sets, shows and takes back the kernel settings of 90-millrace.conf. The keys, their reasons and marks are in that
# file; this script holds no value of its own.
#
#   tune.sh check   [--root DIR]              table of key, now, wanted; exit 1 when something differs
#   tune.sh apply   [--root DIR] [--dry-run]  saves the old values, sets the new ones, keeps them over a reboot
#   tune.sh undo    [--root DIR] [--dry-run]  puts back exactly what was there before the first apply
#
# --root DIR works on a copy of /proc/sys, /etc and /var below DIR instead of this host's (for tests and images).
# Exit codes: 0 good; 1 something differs or could not be set or put back; 2 wrong arguments.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
conf=$here/90-millrace.conf
action=
root=
dry_run=no
failed=0

main() {
    parse_arguments "$@"
    state=$root/var/lib/millrace/tune
    load_wanted
    case $action in
        check) check ;;
        apply) apply ;;
        undo) undo ;;
    esac
    return "$failed"
}

usage() {
    sed -n '2,/^set -e/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
}

parse_arguments() {
    while (($#)); do
        case $1 in
            check | apply | undo) action=$1 ;;
            --dry-run) dry_run=yes ;;
            --root)
                [[ -d ${2-} ]] || refuse "--root needs a directory that exists"
                root=${2%/}
                shift
                ;;
            -h | --help)
                usage
                exit 0
                ;;
            *) refuse "unknown argument: $1" ;;
        esac
        shift
    done
    [[ -n $action ]] || refuse "say what to do: apply, check or undo"
    [[ $action == check || $dry_run == yes || -n $root || $EUID == 0 ]] || refuse "$action must run as root"
}

refuse() {
    printf 'tune.sh: %s\n\n' "$1" >&2
    usage >&2
    exit 2
}

# --- The wanted settings ---------------------------------------------------------------------------

keys=()
declare -A file_value mark

# Fills `keys`, `file_value` and `mark` from the conf file; a mark belongs to the next key.
load_wanted() {
    local line key pending=exact
    while IFS= read -r line; do
        case $line in
            '# @at-least') pending=at-least ;;
            '# @max-range') pending=max-range ;;
            '#'* | '') ;;
            *=*)
                key=$(one_space "${line%%=*}")
                keys+=("$key")
                file_value[$key]=$(one_space "${line#*=}")
                mark[$key]=$pending
                pending=exact
                ;;
        esac
    done <"$conf"
}

# The value to set on this host: the file's, unless the host has more of a thing that is never lowered.
wanted() {
    local key=$1 now=$2
    local -a have want
    read -ra have <<<"$now"
    read -ra want <<<"${file_value[$key]}"
    local i
    case ${mark[$key]} in
        at-least)
            for i in "${!want[@]}"; do
                want[i]=$(larger "${have[i]:-0}" "${want[i]}")
            done
            ;;
        max-range)
            want[1]=$(larger "${have[1]:-0}" "${want[1]}")
            if ((${have[0]:-65535} < want[0])); then
                want[0]=${have[0]}
            fi
            ;;
    esac
    echo "${want[*]}"
}

larger() {
    # fs.file-max may be 9223372036854775807, the largest number that the shell's arithmetic holds.
    if (($1 > $2)); then echo "$1"; else echo "$2"; fi
}

path_of() {
    echo "$root/proc/sys/${1//./\/}"
}

value_now() {
    local text
    text=$(cat "$(path_of "$1")" 2>/dev/null) || return 1
    one_space "$text"
}

one_space() {
    local -a words
    read -ra words <<<"${1//$'\n'/ }"
    echo "${words[*]}"
}

# --- check -----------------------------------------------------------------------------------------

check() {
    local key now want ok
    printf '%-36s %-28s %-28s %s\n' KEY NOW WANTED OK
    for key in "${keys[@]}"; do
        if ! now=$(value_now "$key"); then
            printf '%-36s %-28s %-28s %s\n' "$key" '-' "${file_value[$key]}" 'absent'
            continue
        fi
        want=$(wanted "$key" "$now")
        ok=yes
        if [[ $now != "$want" ]]; then
            ok=no
            failed=1
        fi
        printf '%-36s %-28s %-28s %s\n' "$key" "$now" "$want" "$ok"
    done
    if ((failed)); then
        echo "Something differs. To set it: sudo $here/tune.sh apply"
    fi
}

# --- apply -----------------------------------------------------------------------------------------

set_keys=()

apply() {
    load_bbr
    save_values
    local key now want
    for key in "${keys[@]}"; do
        if ! now=$(value_now "$key"); then
            echo "skipped  $key: this kernel does not have it"
            continue
        fi
        want=$(wanted "$key" "$now")
        if [[ $now == "$want" ]]; then
            echo "kept     $key = $now"
            if ours "$key" "$want"; then
                set_keys+=("$key = $want")
            fi
        elif [[ $dry_run == yes ]]; then
            echo "would    $key = $want (now $now)"
        elif write_value "$key" "$want"; then
            echo "set      $key = $want (was $now)"
            set_keys+=("$key = $want")
        else
            echo "skipped  $key: cannot be written here (a container, or the kernel refuses '$want')" >&2
        fi
    done
    install_files
}

# Whether the value is held by us. A host that had enough of a thing before keeps its own figure, which may grow
# with its memory: such a key does not belong into the file for the next boot.
ours() {
    [[ ${mark[$1]} == exact ]] || ! grep -qxF "$1=$2" "$state/values" 2>/dev/null
}

# The kernel may answer a write with an error, or take it and keep its own value: only what is read back counts.
write_value() {
    { printf '%s\n' "$2" >"$(path_of "$1")"; } 2>/dev/null || return 1
    [[ $(value_now "$1") == "$2" ]]
}

load_bbr() {
    local available
    available=$(value_now net.ipv4.tcp_available_congestion_control) || return 0
    [[ " $available " == *' bbr '* ]] && return 0
    if [[ $dry_run == yes ]]; then
        echo "would    modprobe tcp_bbr"
        return 0
    fi
    run_modprobe tcp_bbr || true
    available=$(value_now net.ipv4.tcp_available_congestion_control)
    [[ " $available " == *' bbr '* ]] && return 0
    echo "WARNING  this kernel offers no BBR (only: $available) and the module tcp_bbr could not be loaded." >&2
    echo "WARNING  Streams will run with the congestion control that is set now; all else works." >&2
}

run_modprobe() {
    if [[ -n $root ]]; then
        # Another tree is not the running kernel: never load a module into this host for it.
        [[ -x $root/sbin/modprobe ]] && "$root/sbin/modprobe" "$1"
    else
        modprobe "$1" 2>/dev/null
    fi
}

# Keeps the first value ever seen of each key, so that a second apply does not take our own values for the old ones.
save_values() {
    [[ $dry_run == no ]] || return 0
    mkdir -p "$state"
    local key now new=$state/values.new
    cat "$state/values" >"$new" 2>/dev/null || : >"$new"
    for key in "${keys[@]}"; do
        now=$(value_now "$key") || continue
        grep -q "^$key=" "$new" || printf '%s=%s\n' "$key" "$now" >>"$new"
    done
    mv "$new" "$state/values"
}

sysctl_file=/etc/sysctl.d/90-millrace.conf
limits_file=/etc/security/limits.d/90-millrace.conf

# What was set here comes back at the next boot. Keys that were skipped are left out, so that the boot reports no errors.
install_files() {
    local text
    text=$(printf '%s\n' "# Written by Millrace's tune.sh; taken away by tune.sh undo." ${set_keys[@]+"${set_keys[@]}"})
    install_file "$sysctl_file" "$text"
    install_file "$limits_file" "$(cat "$here/limits.conf")"
}

install_file() {
    local path=$1 text=$2
    if [[ $dry_run == yes ]]; then
        echo "would    write $path"
        return 0
    fi
    keep_old_file "$path"
    mkdir -p "$root${path%/*}"
    printf '%s\n' "$text" >"$root$path"
    echo "wrote    $path"
}

# Remembers what stood at `path` before the first apply: a copy, or a mark that there was nothing.
keep_old_file() {
    local saved=$state/files/${1##*/}.${1//\//_}
    [[ ! -e $saved && ! -e $saved.absent ]] || return 0
    mkdir -p "$state/files"
    if [[ -e $root$1 ]]; then cp -p "$root$1" "$saved"; else : >"$saved.absent"; fi
}

# --- undo ------------------------------------------------------------------------------------------

undo() {
    if [[ ! -e $state/values ]]; then
        echo "nothing to undo: $state/values does not exist"
        return 0
    fi
    local line key old now
    while IFS= read -r line; do
        key=${line%%=*}
        old=${line#*=}
        if ! now=$(value_now "$key"); then
            echo "skipped  $key: this kernel no longer has it"
        elif [[ $now == "$old" ]]; then
            echo "kept     $key = $now"
        elif [[ $dry_run == yes ]]; then
            echo "would    $key = $old (now $now)"
        elif write_value "$key" "$old"; then
            echo "restored $key = $old (was $now)"
        else
            echo "FAILED   $key: could not be set back to '$old' (now $now)" >&2
            failed=1
        fi
    done <"$state/values"
    restore_file "$sysctl_file"
    restore_file "$limits_file"
    # The saved values go only when all of them are back: else a second undo can finish the work.
    if [[ $dry_run == no && $failed == 0 ]]; then
        rm -r "$state"
    fi
}

restore_file() {
    local saved=$state/files/${1##*/}.${1//\//_}
    if [[ -e $saved ]]; then
        act "restored $1" cp -p "$saved" "$root$1"
    elif [[ -e $saved.absent ]]; then
        act "removed  $1" rm -f "$root$1"
    fi
}

act() {
    local what=$1
    shift
    if [[ $dry_run == yes ]]; then
        echo "would have $what"
        return 0
    fi
    "$@"
    echo "$what"
}

main "$@"
