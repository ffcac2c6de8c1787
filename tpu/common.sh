# shellcheck shell=bash
# What the commands of this folder share.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tpu/settings.sh
. "${SETTINGS:-tpu/settings.sh}"

DRY_RUN=${DRY_RUN:-}
for word in "$@"; do
  case $word in
    --dry-run) DRY_RUN=1 ;;
    --dirty) DIRTY=1 ;;
    *) printf 'tpu: %s is unknown; --dry-run prints every command and runs none.\n' "$word" >&2; exit 2 ;;
  esac
done

WORKDIR=${WORKDIR/#"~/"/\$HOME/} # for the hosts' shells, which expand no ~ behind a =

say() { printf 'tpu: %s\n' "$*" >&2; }
die() { say "$*"; exit 2; }
RUNNING="'[p]ython.*cai-jax run'" # for pgrep and pkill on a host: the run, and not the shell that asks

# A run of files that are not committed could not be made again.
refuse_dirty() {
  local changed
  changed=$(git status --porcelain)
  if [[ $changed && ! ${DIRTY:-} ]]; then
    die "these files are not committed; commit them, or give --dirty:
$changed"
  fi
}

# Runs a command; in a dry run prints it as it can be typed.
run() {
  if [[ $DRY_RUN ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

tpus() { gcloud compute tpus queued-resources "$1" "$NAME" --project="$PROJECT" --zone="$ZONE" "${@:2}"; }

# A command on every host of every slice.
everywhere() { run tpus ssh --node=all --worker=all --command="$1"; }

# How a run ended that all hosts were given, from what each says at its end: 2 where one of them has
# something to mend, 0 where all are done. The client returns one host's exit code, or its own when a
# connection is lost; that counts where no host has said how it ended, or all say 0.
# $1: what the hosts said. $2: the client's exit code.
verdict() {
  local codes worst
  codes=$(grep -o 'cai-jax on [^ ]* ended with exit code [0-9]*' "$1" | sed 's/.* //' || true)
  worst=$(sort -n <<<"${codes:-0}" | tail -n 1)
  if grep -qx 2 <<<"$codes"; then
    echo 2
  elif ((worst != 0)); then
    echo "$worst"
  else
    echo "$2"
  fi
}

# The request's state, such as ACTIVE; ABSENT where there is none.
state() {
  local said
  if said=$(tpus describe --format='value(state.state)' 2>&1); then
    printf '%s\n' "${said:-UNKNOWN}"
  elif [[ $said == *NOT_FOUND* ]]; then
    echo ABSENT
  else
    say "the state of $NAME cannot be had: $said"
    return 1
  fi
}

# Until the request is served. 1: it failed or was taken away, and has to be made again.
wait_until_active() {
  local now before=
  while :; do
    now=$(state) || exit 2
    [[ $now == "$before" ]] || say "$NAME is $now"
    before=$now
    case $now in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING | ABSENT) return 1 ;;
    esac
    sleep "$POLL"
  done
}

[[ $DRY_RUN ]] || command -v gcloud >/dev/null || die "gcloud is not installed; see cloud.google.com/sdk."
[[ $PROJECT ]] || die "PROJECT is empty; set it, or run: gcloud config set project PROJECT"
