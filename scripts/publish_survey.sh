#!/bin/sh
# Puts what a survey found into docs/findings/surveys: its page, its data, and the scripts of the library's own calls.
#     sh scripts/publish_survey.sh statecheck-survey/transformers-5.23.0-quick
set -eu
into="$(dirname "$0")/../docs/findings/surveys/$(basename "$1")"
rm -rf "$into"
mkdir -p "$into"
cp "$1/survey.md" "$into"
(cd "$1" && find models -path '*.native/script.py' -exec grep -L statecheck {} +) | while read -r script; do
    mkdir -p "$into/$(dirname "$script")"
    cp "$1/$script" "$into/$script"
done
