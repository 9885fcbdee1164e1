#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Completes this bundle on its device: builds the engines with TensorRT's trtexec, and compares what
# they compute with golden data. A bundle with the plugins' sources has them compiled first, by nvcc
# and g++. Needs a POSIX shell, trtexec, awk and the usual small tools; no Python, and nothing of
# tc-export.
#
#   sh finish/finish.sh
#
# Exit code 0: all engines are there and compute what they should. 1: a check failed. 4: this
# machine cannot do it. An engine has its name only once it has passed; a second run builds nothing.
#
# What is used here and set nowhere comes from finish/*.settings.
# shellcheck disable=SC2154

set -u
LC_ALL=C
export LC_ALL

work=
child=

say() { printf '%s\n' "$*"; }

stop() {
  code=$1
  shift
  printf 'finish: %s\n' "$@" >&2
  exit "$code"
}

# Opens and shuts the pipe: whoever still waits for its other end to be opened reads an end of file.
release_reader() { [ ! -p "$work/output" ] || : 1<> "$work/output"; }

clean() {
  [ -z "$child" ] || kill "$child" 2>/dev/null
  [ -z "$work" ] || {
    release_reader
    rm -rf "$work"
  }
}

# In the background, so that an interrupt is not kept waiting until trtexec has ended.
run() {
  "$@" &
  child=$!
  wait "$child"
  status=$?
  child=
  return "$status"
}

find_trtexec() {
  for candidate in trtexec /usr/src/tensorrt/bin/trtexec; do
    command -v "$candidate" && return
  done
  stop 4 "trtexec is not on the PATH, nor in /usr/src/tensorrt/bin" \
    "install TensorRT $tensorrt with its samples (on a Jetson: apt install nvidia-jetpack)"
}

has_option() { grep -q -e "$1" "$work/help"; }

check_machine() {
  found=$(uname -m)
  [ "$found" = "$architecture" ] ||
    stop 4 "this machine is $found; the bundle's plugins are for $architecture ($target)"
  trtexec=$(find_trtexec) || exit 4
  run "$trtexec" --help > "$work/help" 2>&1
  number=$(sed -n 's/.*\[TensorRT v\([0-9][0-9]*\)\].*/\1/p' "$work/help" | head -n 1)
  [ -n "$number" ] || stop 4 "$trtexec does not say its version"
  # v100300 is 10.3.0; up to 9 it was v8601 for 8.6.1, which is too old anyhow.
  major=$((number / 10000))
  minor=$((number / 100 % 100))
  version=$major.$minor
  # A parser keeps what older ones of its major version took.
  { [ "$major" -eq "${tensorrt%%.*}" ] && [ "$minor" -ge "${tensorrt#*.}" ]; } ||
    stop 4 "this machine has TensorRT $version; the graphs were made for $tensorrt or a later" \
      "${tensorrt%%.*}.x" \
      "build the bundle again for a release of $target that has TensorRT $version"
  for option in --saveEngine --loadInputs --exportOutput --dynamicPlugins --skipInference; do
    has_option "$option" || stop 4 "$trtexec has no $option"
  done
  say "machine: $architecture, TensorRT $version, $trtexec"
}

check_files() {
  [ -n "$plugin_sources" ] || [ -f "$plugin" ] || stop 1 "the plugin library $plugin is missing"
  say "checking the bundle's files"
  sha256sum -c finish/SHA256SUMS > "$work/sums" 2>&1 ||
    stop 1 "files of this bundle are changed or missing:" \
      "$(grep -v ': OK$' "$work/sums")" "get the bundle again from where it was built"
}

# The library is there, and was compiled from the sources that the bundle holds now.
is_compiled() {
  [ -f "$plugin" ] && [ -f "$plugin.sha256" ] && sha256sum -c "$plugin.sha256" > /dev/null 2>&1 &&
    sed 1d "$plugin.sha256" | cmp -s - "$work/sources"
}

compile_plugins() {
  grep "  $plugin_sources/" finish/SHA256SUMS > "$work/sources"
  if is_compiled; then
    say "$plugin is there"
    return
  fi
  say "compiling $plugin; this takes minutes"
  run sh finish/compile_plugins.sh "$work/library" > "$work/log" 2>&1 ||
    stop 4 "the plugins could not be compiled:" "$(tail -n 15 "$work/log")"
  mkdir -p "$(dirname "$plugin")" || stop 4 "this folder cannot be written to"
  # Its hash goes first, as an engine's does. Below it stand those of all that it was made from.
  sum=$(sha256sum "$work/library") || stop 4 "sha256sum failed"
  printf '%s  %s\n' "${sum%% *}" "$plugin" > "$work/sum"
  cat "$work/sources" >> "$work/sum"
  if ! mv "$work/sum" "$plugin.sha256" || ! mv "$work/library" "$plugin"; then
    stop 4 "this folder cannot be written to"
  fi
}

# The engine is there, is the one that passed, and was built from what the bundle holds now.
is_accepted() {
  [ -f "$engine" ] && [ -f "$engine.sha256" ] && sha256sum -c "$engine.sha256" > /dev/null 2>&1
}

build() {
  say "building $engine; this takes minutes"
  set -- "--onnx=$graph" "--saveEngine=$work/engine" --skipInference \
    "--minShapes=$min_shapes" "--optShapes=$opt_shapes" "--maxShapes=$max_shapes"
  # What a version lacks it does without: from TensorRT 11 on every network is strongly typed.
  has_option --stronglyTyped && set -- "$@" --stronglyTyped
  has_option --profilingVerbosity && set -- "$@" --profilingVerbosity=detailed
  has_option --exportLayerInfo && set -- "$@" "--exportLayerInfo=$work/layers.json"
  has_option aliasedPluginIO1003 && set -- "$@" --preview=+aliasedPluginIO1003
  if has_option --timingCacheFile; then
    [ ! -f finish/timing.cache ] || cp finish/timing.cache "$work/timing.cache"
    set -- "$@" "--timingCacheFile=$work/timing.cache"
  fi
  [ -z "$needs_plugin" ] || set -- "$@" "--dynamicPlugins=$plugin"
  if ! run "$trtexec" "$@" > "$work/log" 2>&1 || [ ! -s "$work/engine" ]; then
    stop 4 "trtexec could not build $engine; its last words:" "$(tail -n 15 "$work/log")"
  fi
  [ ! -s "$work/timing.cache" ] || mv "$work/timing.cache" finish/timing.cache
}

# trtexec writes all outputs as text, the cache too, which may be gigabytes: so it goes through a
# pipe, and is forgotten as it comes.
judge() {
  say "comparing $1 with the golden data"
  od -A n -v -t f4 "$golden" > "$work/expected"
  rm -f "$work/output"
  mkfifo "$work/output" || stop 4 "no named pipe can be made in this folder"
  # shellcheck disable=SC2020 # two characters, each becomes a new line
  tr -s ' ,' '\n\n' < "$work/output" | awk -f finish/compare.awk \
    -v "name=$output" -v "expected=$work/expected" -v "tolerance=$tolerance" > "$work/verdict" &
  reader=$!
  set -- "--loadEngine=$1" "--shapes=$shapes" "--loadInputs=$inputs" \
    "--exportOutput=$work/output" --iterations=1 --warmUp=0 --duration=0
  [ -z "$needs_plugin" ] || set -- "$@" "--dynamicPlugins=$plugin"
  run "$trtexec" "$@" > "$work/log" 2>&1
  ran=$?
  release_reader
  wait "$reader"
  passed=$?
  [ "$ran" -eq 0 ] ||
    stop 4 "trtexec could not run the engine; its last words:" "$(tail -n 15 "$work/log")"
  cat "$work/verdict"
  return "$passed"
}

finish_graph() {
  # shellcheck source=/dev/null
  . "finish/$1.settings"
  if is_accepted; then
    say "$engine is there"
    judge "$engine" && return
    rm -f "$engine" "$engine.sha256" "$engine.layers.json"
    stop 1 "the $1 engine no longer computes what it should, and was removed"
  fi
  rm -f "$work/layers.json"
  mkdir -p "$(dirname "$engine")" || stop 4 "this folder cannot be written to"
  build
  judge "$work/engine" || stop 1 "the $1 engine does not compute what it should; it is not kept"
  # Its hash goes first: an engine without one, or with another, is built again. Beside it stands
  # that of all that it was made from.
  sum=$(sha256sum "$work/engine") || stop 4 "sha256sum failed"
  printf '%s  %s\n' "${sum%% *}" "$engine" > "$work/sum"
  sha256sum finish/SHA256SUMS >> "$work/sum" || stop 4 "sha256sum failed"
  [ ! -s "$work/layers.json" ] || mv "$work/layers.json" "$engine.layers.json"
  if ! mv "$work/sum" "$engine.sha256" || ! mv "$work/engine" "$engine"; then
    stop 4 "this folder cannot be written to"
  fi
}

cd "$(dirname "$0")/.." || exit 4
# shellcheck source=/dev/null
. finish/machine.settings

trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

for left in finish/.work.*; do
  [ -d "$left" ] || continue
  kill -0 "${left##*.}" 2>/dev/null && stop 4 "another finish.sh is at work (process ${left##*.})"
  rm -rf "$left"
done
mkdir "finish/.work.$$" || stop 4 "this folder cannot be written to"
work=finish/.work.$$

check_machine
check_files
[ -z "$plugin_sources" ] || compile_plugins
for graph_name in $graphs; do
  finish_graph "$graph_name"
done
say "finished: the engines compute what the model computes"
