//! Programs that ask much of a file system.

use crate::scratch_mount::{has, mount};

#[test]
fn sqlite_commits_rolls_back_and_checks_out() {
    let Some(scratch) = mount() else { return };
    scratch.python(
        "import sqlite3, threading
for mode in 'delete', 'wal', 'truncate':
    name = mode + '.db'
    with sqlite3.connect(name) as db:
        assert db.execute(f'pragma journal_mode={mode}').fetchone()[0] == mode
        db.execute('create table t (id integer primary key, writer text, data blob)')
    def insert(writer):
        db = sqlite3.connect(name, timeout=30)
        for n in range(50):
            with db:
                db.execute('insert into t (writer, data) values (?, randomblob(3000))', (writer,))
        db.close()
    threads = [threading.Thread(target=insert, args=(w,)) for w in 'abc']
    for t in threads: t.start()
    for t in threads: t.join()
    db = sqlite3.connect(name)
    db.execute('delete from t where id % 2')
    db.rollback()
    assert db.execute('select count(*), count(distinct id) from t').fetchone() == (150, 150)
    db.execute('vacuum')
    assert db.execute('pragma integrity_check').fetchone()[0] == 'ok'
    db.close()",
    );
}

#[test]
fn git_keeps_a_repository() {
    if !has("git") {
        return;
    }
    let Some(scratch) = mount() else { return };
    scratch.sh("export HOME=$PWD GIT_CONFIG_NOSYSTEM=1
        git config --global user.email t@example.org; git config --global user.name t
        git config --global init.defaultBranch main; git config --global gc.auto 0
        git init -q one; cd one
        i=0; while [ $i -lt 200 ]; do mkdir -p d$((i%10)); echo $i > d$((i%10))/f$i; i=$((i+1)); done
        ln -s d1/f1 link; chmod +x d2/f2
        git add .; git commit -qm first
        git mv d3 moved; echo more >> d4/f4; git commit -qam second
        git checkout -qb side HEAD~1; test -d d3; git checkout -q main; test -d moved
        git gc -q --prune=now; git fsck --strict
        test -z \"$(git status --porcelain)\"
        git clone -q . ../two; git clone -q --no-hardlinks . ../three
        cd ../two; git fsck --strict; test \"$(git log --oneline | wc -l)\" = 2; test -x d2/f2
        diff -r --exclude=.git . ../one");
}

#[test]
fn tar_and_cp_carry_a_tree_there_and_back() {
    let Some(scratch) = mount() else { return };
    scratch.sh("mkdir -p tree/deep/er/still; cd tree
        i=0; while [ $i -lt 300 ]; do head -c $((i * 137)) /dev/urandom > deep/f$i; i=$((i+1)); done
        ln deep/f7 deep/hard; ln -s ../f8 deep/er/soft
        truncate -s 10M deep/sparse; echo end >> deep/sparse
        touch -d '1969-12-31 23:59:58.5 UTC' deep/f1; chmod 4750 deep/f2; chown 12:34 deep/f3
        cd ..; tar -cSf out.tar --numeric-owner tree; mkdir back; tar -xpf out.tar -C back --numeric-owner
        tar -df out.tar -C back; cp -a tree copy; diff -r --no-dereference tree copy
        test $(stat -c %h copy/deep/hard) = 2; test $(stat -c %a back/tree/deep/f2) = 4750
        test \"$(stat -c %u:%g back/tree/deep/f3)\" = 12:34
        test $(stat -c %Y back/tree/deep/f1) = -2
        rm -r tree back copy; test \"$(ls)\" = out.tar");
}
