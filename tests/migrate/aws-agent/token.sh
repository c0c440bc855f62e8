umask 027
od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > /var/run/awssmatoken
chgrp my-bot /var/run/awssmatoken
