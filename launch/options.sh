# shellcheck shell=bash
# Error messages and option parsing of the scripts here; sourced by them. Compatible with bash 3.2, the one of macOS.

say() { echo "${0##*/}: $*" >&2; }
fail() {
    say "$*"
    exit 2
}

# parse_options VALUED SWITCHES ARG...
# Each option sets the variable of its name (dashes become underscores), which the caller has set to its default: options in the
# list VALUED to the next word, options in the list SWITCHES to true. "NAME:2" in VALUED takes two words, which are added to the
# array `pairs`. All words after `--` become the array `arguments`. --help calls the caller's `usage`.
parse_options() {
    local valued=" $1 " switches=" $2 " word # (a local with an option's name would shadow it)
    shift 2
    # shellcheck disable=SC2034  # the callers read both
    pairs=() arguments=()
    while (($#)); do
        word=${1#--}
        [[ $1 =~ ^--[a-z-]+$ ]] || word="?"
        if [[ $1 == -h || $1 == --help ]]; then
            usage
            exit 0
        elif [[ $1 == -- ]]; then
            shift
            # shellcheck disable=SC2034
            arguments=("$@")
            return
        elif [[ $valued == *" $word:2 "* ]]; then
            [[ -n ${2:-} && -n ${3:-} ]] || fail "$1: needs SRC and DST"
            pairs+=("$2" "$3")
            shift 2
        elif [[ $valued == *" $word "* ]]; then
            [[ -n ${2:-} ]] || fail "$1: needs a value"
            printf -v "${word//-/_}" '%s' "$2"
            shift
        elif [[ $switches == *" $word "* ]]; then
            printf -v "${word//-/_}" true
        else
            fail "unknown option '$1'; see --help (options of \`maskgil train\` go after --)"
        fi
        shift
    done
}

# need NAME...: fails unless each of these options was given; the workdir must be in a bucket.
need() {
    local option
    for option in "$@"; do
        if [[ $option == workdir ]]; then
            [[ ${!option} == gs://* ]] || fail "--workdir: expected gs://bucket/folder (local disks are lost with the TPU), got '${!option}'"
        else
            [[ -n ${!option} ]] || fail "--$option: missing; see --help"
        fi
    done
}
