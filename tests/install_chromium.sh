#!/bin/sh
# Installs Debian's Chromium for the tests of the playground. Never fails: without a browser they skip and say so.
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null ||
        echo "Chromium could not be installed: the tests of the playground will skip."
else
    echo "No Chromium, and no right to install it (apt-get install chromium): the tests of the playground will skip."
fi
