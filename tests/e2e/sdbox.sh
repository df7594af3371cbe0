#!/bin/bash
# A throw-away systemd in namespaces of its own, over this machine's files: sdbox.sh start|exec|stop DIR [COMMAND...]
# What it writes goes into a tmpfs and vanishes with it. Needs root, systemd and a mounted cgroup2. SDBOX_BIND names
# folders in /tmp that shall be seen inside.
set -eu
action=$1 box=$2
shift 2
group=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)/$(basename "$box")

init() { # inside the new namespaces: a root of our own, then systemd
  mount --make-rprivate /
  local root=$box/root
  mkdir -p "$root" "$box/layers"
  mount -t tmpfs tmpfs "$box/layers"
  mkdir "$box/layers/upper" "$box/layers/work"
  mount -t overlay overlay -o "lowerdir=/,upperdir=$box/layers/upper,workdir=$box/layers/work" "$root"
  mount -t proc proc "$root/proc"
  mount --bind "$root/proc/sys" "$root/proc/sys"
  mount -o remount,bind,ro "$root/proc/sys" # systemd-sysctl must not reach the host's kernel
  mount -t sysfs -o ro sysfs "$root/sys"
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
  mount -t tmpfs -o mode=755 tmpfs "$root/run"
  mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
  for folder in ${SDBOX_BIND:-}; do # what lies in /tmp is hidden otherwise; read-only, for systemd-tmpfiles cleans there
    mkdir -p "$root$folder"
    mount --bind "$folder" "$root$folder"
    mount -o remount,bind,ro "$root$folder"
  done
  mount -t tmpfs -o mode=755 tmpfs "$root/dev" # the host's /dev would show through otherwise
  mkdir -m 1777 "$root/dev/shm"
  mkdir "$root/dev/pts"
  for node in null zero full random urandom tty; do
    touch "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
  done
  mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$root/dev/pts"
  ln -s pts/ptmx "$root/dev/ptmx"
  ln -s /proc/self/fd "$root/dev/fd"
  cd "$root"
  mkdir -p .old
  pivot_root . .old
  umount -l /.old
  cd /
  exec env -i container=sdbox PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=basic.target --show-status=0
}

case $action in
start)
  mkdir -p "$box" "$group"
  (
    echo "$BASHPID" >"$group/cgroup.procs"
    exec setsid unshare -m -p -f -C -u -i --kill-child=SIGKILL "$0" init "$box"
  ) </dev/null >"$box/console.log" 2>&1 &
  echo $! >"$box/outer.pid"
  for _ in $(seq 150); do
    child=$(tr -d ' ' <"/proc/$(<"$box/outer.pid")/task/$(<"$box/outer.pid")/children" 2>/dev/null) || true
    if [ -n "${child:-}" ]; then
      echo "$child" >"$box/init.pid"
      case $(nsenter -t "$child" -a systemctl is-system-running 2>/dev/null) in running | degraded) exit 0 ;; esac
    fi
    sleep 0.1
  done
  cat "$box/console.log" >&2
  exit 1
  ;;
init) init ;;
exec) exec nsenter -t "$(<"$box/init.pid")" -a "$@" ;;
stop)
  kill -9 "$(<"$box/init.pid")" 2>/dev/null || true
  for _ in $(seq 100); do
    grep -qs '^State:.[^Z]' "/proc/$(<"$box/outer.pid")/status" || break # gone, or a zombie that nobody collects
    sleep 0.1
  done
  find "$group" -depth -type d -exec rmdir {} \;
  ;;
esac
